"""The comparison of two checkouts reads the figures of every workload's report."""

from benchmarks.paired import figures


def test_figures_of_a_report_are_its_numbers_and_medians() -> None:
    """Numbers are found at any depth, a spread counts as its median, and texts are left out."""
    report = {
        "systems": {"isogloss-bf16": {"texts_per_s": 300, "errors": 0, "descriptions": {"precision": "bf16"}}},
        "figures": {"single": {"isogloss": {"median": 2.5, "min": 2.0, "max": 3.0}}, "valid": True},
    }
    assert dict(figures(report)) == {
        "systems/isogloss-bf16/texts_per_s": 300.0,
        "systems/isogloss-bf16/errors": 0.0,
        "figures/single/isogloss": 2.5,
    }
