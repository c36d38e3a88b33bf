"""The experiments on the three mysteries: what their studies are, and one carried out whole."""

import json

import pytest

from keras_distill.experiments import claims
from keras_distill.experiments import definitions
from keras_distill.experiments import mysteries
from keras_distill.experiments import reproducing
from keras_distill.experiments import synthetic
from keras_distill.experiments.claims import AGREES
from keras_distill.experiments.claims import CONTRADICTS
from keras_distill.experiments.claims import OPEN

EVERY = {
    experiment.name: experiment
    for experiment in (
        mysteries.DEEP,
        mysteries.RANDOM_FEATURES,
        mysteries.TANGENT,
        synthetic.GAUSSIAN,
        synthetic.MULTI_VIEW,
    )
}


@pytest.fixture
def planned(monkeypatch):
    """A function of an experiment and a scale that returns its studies, none carried out."""

    class Planned(Exception):
        pass

    def plan(experiment, scale, folder):
        seeds = range(experiment.scale(scale).seeds)
        found = {}

        def keep(place, studies, words):
            found.update(studies)
            raise Planned(words)

        for module in (mysteries, synthetic):
            monkeypatch.setattr(module, "carried_out", keep)
        run = definitions.begin(experiment, scale, folder)
        with pytest.raises(Planned):
            experiment.measure(definitions.Place(run, experiment.scale(scale), seeds))
        return found

    return plan


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("name", EVERY)
def test_networks_fit_the_data_and_depend_on_the_seed(name, planned, tmp_path):
    studies = planned(EVERY[name], "tiny", tmp_path)
    for study in studies.values():
        one, again, other = (study.build(seed) for seed in (0, 0, 1))
        images = study.data.train.images[:4] / 255.0
        said = [model(images).numpy() for model in (one, again, other)]
        assert said[0].shape == (4, study.data.train.class_count)
        if name == "mysteries_linearized":  # 0 before training: their features differ
            said = [
                model.get_layer("expansion").initial[0].numpy() for model in (one, again, other)
            ]
        assert (said[0] == said[1]).all() and (said[0] != said[2]).any()
        study.task(0).plan(one, one)  # its head, rate and batches are understood


@pytest.mark.parametrize("name", ["mysteries_gaussian", "mysteries_multi_view"])
def test_small_scale_is_what_the_page_says(name, planned, tmp_path):
    studies = planned(EVERY[name], "small", tmp_path)
    sizes = {title: len(study.data.train) for title, study in studies.items()}
    if name == "mysteries_multi_view":
        assert sizes == {"": 1000}
        (study,) = studies.values()
        assert study.groups == tuple(range(20)) and study.data.single_view.shown.min() == 0
        assert (study.data.train.shown == -1).all()
    else:
        assert list(sizes.values()) == [20_000, 4000, 20_000]
        assert all(len(study.networks) == 15 for study in studies.values())


@pytest.mark.slow
@pytest.mark.tensorflow
def test_one_experiment_from_data_to_page(tmp_path):
    experiment = EVERY["mysteries_multi_view"]
    lines = []
    options = {"out": tmp_path / "out", "work": tmp_path / "work", "say": lines.append}
    results = reproducing.reproduce(experiment, "tiny", **options)
    assert results == json.loads((tmp_path / "out" / "mysteries_multi_view.json").read_text())
    groups = {entry["group"] for entry in results["comparison"]}
    assert groups == {"", "single-view samples"}
    single, ensemble, distilled = results["comparison"][:3]
    assert [entry["name"] for entry in (single, ensemble, distilled)] == [
        "single",
        "ensemble",
        "distilled",
    ]
    gain = ensemble["accuracy"]["mean"] - single["accuracy"]["mean"]
    assert ensemble["gain"]["mean"] == pytest.approx(gain)
    assert single["records"][0]["best_member"] >= single["accuracy"]["mean"]
    assert [each["size"] for each in results["by_size"][""]] == [1, 2]
    page = (tmp_path / "out" / "mysteries_multi_view.md").read_text()
    for words in ("networks trained", "best of the group %", "by size", "single-view samples"):
        assert words in page
    assert (tmp_path / "out" / "mysteries_multi_view.png").stat().st_size > 1000


def entries(row, than):
    """Two rows with these accuracies, by id."""
    made = [
        definitions.entry(
            name,
            "",
            [
                {"seed": seed, "accuracy": value, "seconds": 1.0}
                for seed, value in enumerate(values)
            ],
        )
        for name, values in (("row", row), ("than", than))
    ]
    return {entry["id"]: entry for entry in made}


def test_no_larger_is_one_sided():
    judge = claims.no_larger("row", "than", 1.0)
    base = [0.70, 0.71, 0.72]

    def verdict(gains):
        return judge(entries([b + g for b, g in zip(base, gains)], base))["verdict"]

    assert verdict([0.001, 0.002, 0.001]) == AGREES
    assert verdict([-0.05, -0.06, -0.07]) == AGREES
    assert verdict([0.030, 0.031, 0.030]) == CONTRADICTS
    assert verdict([0.001, 0.030, 0.001]) == OPEN
    assert judge(entries([0.7], [0.7]))["verdict"] == OPEN
