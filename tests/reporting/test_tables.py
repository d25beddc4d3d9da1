"""The tables of a comparison by hand."""

from __future__ import annotations

from emcid_jax.reporting.tables import as_csv, as_markdown

ROWS = [
    {
        "count": count,
        "name": name,
        "clean": {"gone": {"value": 0.1, "low": 0.05, "high": 0.2}},
        "edited": {"gone": {"value": gone, "low": None, "high": None}, "h": {"value": 1.0}},
        "guard": {"intact": gone < 1},
        "seconds": 12.4,
        "processor": 20.6,
        "mebibytes": memory,
        "forms": {"plural": {"names": 3, "value": 0.25}} if memory else {},
    }
    for count, name, gone, memory in ((100, "UCE", 1.0, None), (10, "a, b", 0.875, 512.3))
]


def test_csv_has_a_line_per_cell_and_figure() -> None:
    assert as_csv(ROWS).splitlines() == [
        "n,method,metric,value,low,high",
        "10,unedited,gone,0.1000,0.0500,0.2000",
        '10,"a, b",gone,0.8750,,',
        '10,"a, b",h,1.0000,,',
        '10,"a, b",form: plural,0.2500,,',
        '10,"a, b",intact,1.0000,,',
        '10,"a, b",seconds,12.4000,,',
        '10,"a, b",processor,20.6000,,',
        '10,"a, b",mebibytes,512.3000,,',
        "100,unedited,gone,0.1000,0.0500,0.2000",
        "100,UCE,gone,1.0000,,",
        "100,UCE,h,1.0000,,",
        "100,UCE,intact,0.0000,,",
        "100,UCE,seconds,12.4000,,",
        "100,UCE,processor,20.6000,,",
        "100,UCE,mebibytes,,,",
    ]


def test_markdown_has_a_line_per_cell() -> None:
    lines = as_markdown(ROWS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert cells[2][:3] == ["10", "unedited", "0.10"]
    assert cells[3][:3] == ["10", "a, b", "0.88"]
    assert cells[3][-4:] == ["yes", "12", "21", "512"]
    assert cells[5][-4:] == ["NO", "12", "21", ""]
