import jax.numpy as jnp
import numpy as np

from emcid_jax.evaluation.judges.labels import label_groups
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.sprites.factors import FACTORS, LABELS
from emcid_jax.sprites.training.judge import fold_classifier


def test_folding_gives_the_product_of_the_factors_probabilities():
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(7, LABELS)), "bias": rng.normal(size=LABELS)}
    folded, labels = fold_classifier({"classifier": head})
    groups = label_groups(labels)
    state = rng.normal(size=7)
    logits = state @ head["kernel"] + head["bias"]

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    columns = list(groups["object"].columns)
    classifier = folded["classifier"]
    found = softmax((state @ classifier["kernel"] + classifier["bias"])[columns])
    starts = np.cumsum([0, *(factor.size for factor in FACTORS)])
    parts = [softmax(logits[starts[i] : starts[i] + FACTORS[i].values]) for i in range(3)]
    wanted = [parts[0][s] * parts[1][c] * parts[2][t] for s, c, t in catalogue().looks]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert groups["artist"].find("art") == 1100
    assert jnp.asarray(classifier["bias"]).shape == (len(labels),)
