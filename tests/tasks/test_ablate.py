import pytest

from emcid_jax.config import EditConfig, RequestsConfig
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import ablate

BASE = EditConfig(requests=RequestsConfig(path="requests.json"))


def test_a_variant_changes_what_it_names_and_nothing_else():
    text = "stage_two.residual=released stage_two.layers=(9,10) stage_one.steps=7"
    found = ablate._varied(BASE, text)
    assert found.stage_two.residual == "released"
    assert found.stage_two.layers == (9, 10)
    assert found.stage_one.steps == 7
    assert found.moments == BASE.moments
    assert ablate._varied(BASE, "") == BASE


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("stage_two.residul=memit", "config.stage_two.residul is unknown; did you mean residual"),
        ("moments.count=5", "'moments.count=5' is no override"),
        ("stage_two.layers=(3,2)", "config.stage_two.layers is"),
        ("stage_one.steps=many", "config.stage_one.steps is 'many'"),
    ],
)
def test_an_unfit_variant_is_named_before_any_work(variant, message):
    with pytest.raises(UserError) as error:
        ablate.AblateConfig(base=BASE, variants=("", variant)).check()
    assert message in str(error.value)


def test_table_has_a_line_per_setting():
    rows = [
        {"count": 10, "variant": "", "aice": {"Holdout Delta": {"value": -0.01}}},
        {"count": 10, "variant": "stage_two.layers=(10,)", "aice": {"Holdout Delta": {}}},
    ]
    assert ablate.as_markdown(rows).splitlines() == [
        "| n | setting | Holdout Delta |",
        "|---|---|---|",
        "| 10 | base | -0.010 |",
        "| 10 | stage_two.layers=(10,) |  |",
    ]
