"""Every equation and every erratum leads to its code and its test; a broken link is told."""

import ast
import re
import shutil

import equations
import pytest

TESTS = "tests/textbook"
FORMULAS = f"{TESTS}/test_textbook_equations.py"
TRACE = equations.read()
ERRATA = equations.errata()
DOCUMENTS = {equation.document for equation in TRACE.equations.values()}


def test_every_equation_has_its_textbook_function_its_engine_function_and_its_test():
    assert equations.broken(TRACE) == []


def test_the_page_of_equations_is_up_to_date():
    """If it is not: ``python tests/textbook/equations.py``."""
    assert (equations.ROOT / equations.PAGE).read_text() == equations.page(TRACE)


def test_every_link_of_the_pages_leads_to_a_file():
    for page in (equations.PAGE, equations.ERRATA):
        path = equations.ROOT / page
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_equations_are_numbered_from_one():
    for kind in ("rnn", "lstm", "step", "net"):
        ids = [name for name in TRACE.equations if name.startswith(f"{kind}-")]
        assert ids == [f"{kind}-{i + 1}" for i in range(len(ids))]


def test_every_equation_has_one_test():
    assert {name: len(places) for name, places in TRACE.tests.items() if len(places) > 1} == {}


def test_the_errata_are_whole():
    assert len(ERRATA) >= 30
    assert [row.id for row in ERRATA] == [f"E{i + 1:02}" for i in range(len(ERRATA))]
    assert {row.document for row in ERRATA} == DOCUMENTS
    assert len(DOCUMENTS) == 3
    text = (equations.ROOT / equations.ERRATA).read_text()
    assert set(re.findall(equations.ID, text)) <= TRACE.equations.keys()


def test_every_erratum_has_its_test_and_every_test_its_erratum():
    tree = ast.parse((equations.ROOT / TESTS / "test_textbook_errata.py").read_text())
    tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    tests = [name for name in tests if name.startswith("test_")]
    assert sorted(f"`{name}`" for name in tests) == sorted(row.test for row in ERRATA)


PLANTED = {
    "no_textbook_function": (
        "jaxrnn/textbook/rnn.py", "rnn-8, rnn-9.", "rnn-9.",
        "rnn-8 has no function of the textbook",
    ),
    "no_engine_function": (
        "jaxrnn/cells/lstm.py", "lstm-21, lstm-22.", "lstm-22.",
        "lstm-21 has no function of the engine",
    ),
    "no_test": (
        FORMULAS, "def test_net_9_", "def check_net_9_",
        "net-9 has no test",
    ),
    "an_equation_that_is_not_listed": (
        "jaxrnn/textbook/lstm.py", "    lstm-22    dc_prev", "    dc_prev",
        "jaxrnn/cells/lstm.py: pull names lstm-22, which is not listed",
    ),
    "an_engine_function_of_nothing": (
        "jaxrnn/readout.py", "step-8", "step-88",
        "jaxrnn/readout.py: _squared_error_bwd names step-88, which is not listed",
    ),
    "a_test_of_nothing": (
        FORMULAS, "def test_rnn_9_", "def test_rnn_99_",
        f"{FORMULAS}: test_rnn_99_da_prev names rnn-99, which is not listed",
    ),
    "an_equation_of_a_module_that_is_not_listed": (
        "jaxrnn/textbook/unfolded.py", "follows from net-6 and net-7", "follows from net-77",
        "jaxrnn/textbook/unfolded.py: the module names net-77, which is not listed",
    ),
    "an_equations_test_that_is_skipped": (
        FORMULAS, "def test_net_9_", "@pytest.mark.skip\ndef test_net_9_",
        f"{FORMULAS}: test_net_9_dw_r may be skipped",
    ),
    "an_equations_test_that_is_skipped_by_its_body": (
        FORMULAS, "def test_net_9_dw_r(net):\n",
        "def test_net_9_dw_r(net):\n    pytest.skip('slow')\n",
        f"{FORMULAS}: test_net_9_dw_r may be skipped",
    ),
    "an_erratums_test_that_is_skipped_somewhere": (
        f"{TESTS}/test_textbook_errata.py", "def test_the_sign_of_the_error(",
        "@pytest.mark.skipif(True, reason='')\ndef test_the_sign_of_the_error(",
        f"{TESTS}/test_textbook_errata.py: test_the_sign_of_the_error may be skipped",
    ),
    "an_erratums_test_that_is_to_fail": (
        f"{TESTS}/test_textbook_errata.py", "def test_the_sign_of_the_error(",
        "@pytest.mark.xfail(strict=False)\ndef test_the_sign_of_the_error(",
        f"{TESTS}/test_textbook_errata.py: test_the_sign_of_the_error may be skipped",
    ),
    "a_module_of_tests_that_is_skipped": (
        f"{TESTS}/test_textbook_errata.py", "\nEQUATIONS", "\npytestmark = pytest.mark.skip\nMORE",
        f"{TESTS}/test_textbook_errata.py: the module may be skipped",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "text", "spoilt", "problem"), PLANTED.values(), ids=PLANTED)
def test_a_broken_link_is_told(tmp_path, file, text, spoilt, problem):
    for pattern in ("jaxrnn/textbook/*.py", *equations.ENGINE, "tests/textbook/test_textbook*.py"):
        for source in equations.ROOT.glob(pattern):
            copy = tmp_path / source.relative_to(equations.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    source = (tmp_path / file).read_text()
    assert text in source
    (tmp_path / file).write_text(source.replace(text, spoilt))
    assert problem in equations.broken(equations.read(tmp_path))


def test_a_module_that_names_an_equation_is_no_function_that_implements_it(tmp_path):
    source = equations.ROOT / "jaxrnn/cells/lstm.py"
    copy = tmp_path / "jaxrnn/cells/lstm.py"
    copy.parent.mkdir(parents=True)
    text = source.read_text().replace("lstm-21, lstm-22.", "lstm-22.")
    assert text.startswith('"""')
    copy.write_text('"""lstm-21. ' + text[3:])
    trace = equations.read(tmp_path)
    assert "lstm-21" not in trace.engine
    assert trace.modules["lstm-21"] == [equations.Place("", "jaxrnn/cells/lstm.py")]
    assert "lstm-22" in trace.engine
