"""The table of families on the page about models is what the tests run on."""

from __future__ import annotations

from cases import CASES
from family_table import BEGIN, END, PAGE, ROWS, builders, families_of, is_of, table

from tune.models.loading import all_families, find_family


def test_the_page_has_the_table_as_the_tests_make_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.partition(BEGIN)[2].partition(END)[0] == f"\n{table()}\n", "run: make docs"


def test_every_family_and_builder_has_its_row() -> None:
    assert set.union(*map(families_of, ROWS)) == {family.name for family in all_families()}
    assert sorted(builders()) == sorted(module for row in ROWS for module in row.modules)


def test_a_row_s_cases_are_of_its_families() -> None:
    for row in ROWS:
        own = {
            find_family({"model_type": CASES[name]().model_type}).name
            for name in CASES
            if is_of(name, row.cases)
        }
        assert own
        assert own & families_of(row), row.name
