"""What tests share: random problems, compiled programs, user-defined cells."""
