"""What a run's folder gives a report: its models, test images, and what the models say of them."""

import functools
import pathlib

import numpy as np

from keras_distill import data
from keras_distill._checks import message
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.self_distiller import SelfDistiller
from keras_distill.reporting import networks
from keras_distill.reporting import style

MOST_IMAGES = 2000
NEEDED = ("images", "labels")
SAVED = ("teacher", "student")  # whose probabilities `pictures.npz` may hold
TEMPERATURE = 4.0  # of soft targets where the run names none
EXITS = "_exits.keras"  # ends the name of a saved wrapper with exits, after the model's
SHORT = {"teacher": "teacher", "alone": "student", "distilled": "student"}


class Missing(Exception):
    """A picture cannot be drawn from this run; the text says in one sentence why."""


class Source:
    """A run as the report reads it: each piece is read, loaded or computed once, when asked for.

    Args:
        run: The `RunFolder`.
        results: Its results, checked.
        layer: Path of the layer whose channels are shown; None for the last feature map.
        at_hand: A dict of model name -> network, which then need not be loaded.

    Attributes:
        models: The entries `models` of the results.
        roles: A dict of name -> "teacher", "alone" or "distilled", for models that have one.
        colours: A dict of name -> colour.
    """

    def __init__(self, run, results, layer=None, at_hand=None):
        self.run = run
        self.results = results
        self.layer = layer
        self.at_hand = dict(at_hand or {})
        self.models = results["models"]
        self.pictures = run.read_pictures()
        self.records = run.read_metrics()
        self.roles = self._roles()
        self.colours = style.colours((model["name"] for model in self.models), self.roles)
        self.problems = []
        missing = [name for name in NEEDED if name not in self.pictures]
        if self.pictures and missing:
            raise ValueError(message(f"`pictures.npz` to hold {NEEDED}", "missing", missing))

    def _roles(self):
        roles = {m["name"]: m["role"] for m in self.models if m.get("role") in style.ROLES}
        if roles:
            return roles
        gain = self.results.get("gain") or {}
        for key, role in (("baseline", "alone"), ("model", "distilled")):
            if key in gain:
                roles[gain[key]] = role
        if "teacher_probabilities" in self.pictures:
            roles.setdefault(self.models[0]["name"], "teacher")
            roles.setdefault(self.models[-1]["name"], "distilled")
        return roles

    def with_role(self, *roles):
        """The first model's name that has one of these roles, sought in their order, or None."""
        return next(
            (name for role in roles for name, its in self.roles.items() if its == role), None
        )

    # Images.

    @functools.cached_property
    def _test(self):
        """`(images, labels)`: of the run's folder, else of the data set that it names."""
        if self.pictures:
            images, labels = (np.asarray(self.pictures[name]) for name in NEEDED)
            kinds = images.dtype.kind in "uif" and labels.dtype.kind in "ui"
            if images.ndim != 4 or not images.size or labels.shape != images.shape[:1] or not kinds:
                found = [(array.shape, str(array.dtype)) for array in (images, labels)]
                raise ValueError(
                    message("`pictures.npz` to hold images and a label of each", "found", found)
                )
            return images, labels
        test = load_test(self.run.read_settings())
        return test.images[:MOST_IMAGES], test.labels[:MOST_IMAGES]

    @property
    def images(self):
        """Test images, array (samples, height, width, channels); at most 2,000 are read."""
        return self._test[0]

    @property
    def labels(self):
        """Their labels, int array (samples,)."""
        return self._test[1]

    @functools.cached_property
    def class_names(self):
        """The classes' names by label."""
        saved = next(
            (self.pictures[key] for role in SAVED if (key := _key(role)) in self.pictures), None
        )
        count = int(self.labels.max()) + 1 if saved is None else saved.shape[-1]
        names = self.results.get("class_names") or [str(i) for i in range(count)]
        if len(names) < count or (saved is not None and len(names) != count):
            raise ValueError(message(f"`class_names` to be {count} names", "class_names", names))
        return [str(name) for name in names]

    # Networks.

    @functools.cached_property
    def networks(self):
        """A dict of model name -> network, of those whose file is there, loads and fits."""
        found = {}
        for model in self.models:
            name, path = model["name"], self._path(model.get("file"))
            if name not in self.at_hand and path is None:
                continue
            try:
                network = self.at_hand.get(name)
                network = networks.open_network(path) if network is None else network
                networks.probabilities(network, self.images[:1])
            except Missing:
                raise
            except Exception as error:  # a damaged file, a missing class, other images
                self.problems.append(f"{name}: {_first_line(error)}")
            else:
                found[name] = network
        return found

    def need_networks(self, least=1):
        """`networks`, or raises `Missing` where there are fewer."""
        if len(self.models) < least:
            raise Missing(f"the run has {len(self.models)} model, and it takes {least}")
        if len(self.networks) >= least:
            return self.networks
        raise Missing(
            f"it needs {least} or more of the models that results.json names as .keras files; "
            + (f"of those {'; '.join(self.problems)}" if self.problems else "they are not there")
        )

    def _path(self, file):
        if not file:
            return None
        inside, outside = self.run.path / str(file), pathlib.Path(str(file))
        return next((path for path in (inside, outside) if path.is_file()), None)

    @functools.cached_property
    def probabilities(self):
        """A dict of model name -> probabilities (samples, classes), as far as there are any."""
        found = {}
        for model in self.models:
            name = model["name"]
            saved = next(
                (s for s in SAVED if name == self._named(s) and _key(s) in self.pictures), None
            )
            if saved is not None:
                found[name] = np.asarray(self.pictures[_key(saved)], "float64")
        for name, network in self.networks.items():
            if name not in found:
                said = networks.probabilities(network, self.images)
                if said.shape[-1] == len(self.class_names):
                    found[name] = said
        for name, said in list(found.items()):
            if said.shape != (len(self.labels), len(self.class_names)):
                expected = f"probabilities of shape {(len(self.labels), len(self.class_names))}"
                raise ValueError(message(expected, "shape", said.shape, f"Those of {name!r}."))
            if not np.isfinite(said).all():  # a training that went astray
                self.problems.append(f"{name}: not all of its answers are finite")
                del found[name]
        order = [model["name"] for model in self.models]
        return {name: found[name] for name in order if name in found}

    def need_probabilities(self, least=1):
        """`probabilities`, or raises `Missing` where there are fewer."""
        if len(self.probabilities) < least:
            self.need_networks(least)
            raise Missing(f"it needs the answers of {least} models; {'; '.join(self.problems)}")
        return self.probabilities

    def _named(self, saved):
        """The model of which `pictures.npz` holds the "teacher" or the "student" probabilities."""
        if saved == "teacher":
            return self.with_role("teacher")
        return self.with_role("distilled", "alone")

    @functools.cached_property
    def pair(self):
        """Names of two models to hold against each other, and short words for them.

        Teacher and distilled student where there are both; else the first two.
        """
        known = self.need_probabilities(2)
        names = [self._named(saved) for saved in SAVED]
        if all(name in known for name in names):
            return names, [SHORT[self.roles[name]] for name in names]
        names = list(known)[:2]
        return names, names

    @functools.cached_property
    def soft_targets(self):
        """`(soft targets of the teacher, their temperature)`."""
        teacher = self.with_role("teacher")
        if teacher is None:
            raise Missing("the run has no teacher")
        if "soft_targets" in self.pictures:
            found = np.asarray(self.pictures["soft_targets"], "float64")
            if found.shape != (len(self.labels), len(self.class_names)):
                expected = f"soft targets of shape {(len(self.labels), len(self.class_names))}"
                raise ValueError(message(expected, "shape", found.shape))
            temperature = self.pictures.get("temperature")
            return _finite(found, teacher), None if temperature is None else float(temperature)
        if teacher in self.networks:
            temperature = self.run.read_settings().get("temperature") or TEMPERATURE
            found = networks.probabilities(self.networks[teacher], self.images, temperature)
            return _finite(found, teacher), float(temperature)
        if teacher not in self.need_probabilities():
            raise Missing(f"there are no answers of {teacher}")
        return self.probabilities[teacher], None

    @functools.cached_property
    def teacher_members(self):
        """`(name, network)` of the teacher's members, of the teacher itself if it is one net."""
        name = self.with_role("teacher")
        if name not in self.networks:
            return []
        network = self.networks[name]
        if not isinstance(network, EnsembleTeacher):
            return [(name, network)]
        return [(f"{name}: {member.name}", member) for member in network.members]

    @functools.cached_property
    def distiller(self):
        """`(name, SelfDistiller)` of the first model X.keras with X_exits.keras beside it."""
        for model in self.models:
            path = self._path(model.get("file"))
            path = path and path.with_name(f"{path.stem}{EXITS}")
            if path and path.is_file():
                import keras

                found = keras.models.load_model(path, compile=False)
                if isinstance(found, SelfDistiller):
                    return model["name"], found
        raise Missing("no model of the run has exits (the recipe self_distillation trains one)")


def load_test(settings):
    """Loads the test images that a run's settings name, from what is on this machine.

    Args:
        settings: What `settings.json` holds.

    Returns:
        An `ImageData`.

    Raises:
        Missing: If they name none, or it is not at hand.
    """
    entry = settings.get("data") or {}
    tested = entry.get("test") if isinstance(entry, dict) else None
    name = settings.get("dataset")
    if settings.get("command") == "demo":
        name = "digits"
    elif tested:
        name = str(tested.get("name", "")).rpartition("/")[0]
    if not name:
        raise Missing("the folder holds no test images, and its settings name no data set")
    try:
        test = data.load(
            name,
            settings.get("data_dir"),
            "test",
            image_size=settings.get("image_size"),
            test_limit=settings.get("test_limit"),
            seed=settings.get("seed") or 0,
            download=False,
        )
    except (ImportError, OSError, TypeError, ValueError) as error:
        reason = _first_line(error)
        raise Missing(
            f"the folder holds no test images, and {name} is not at hand: {reason}"
        ) from error
    if tested and tested.get("images") not in (None, len(test)):
        raise Missing(
            f"the folder holds no test images, and {name} at hand has {len(test)}, the run's had "
            f"{tested['images']}"
        )
    return test


def _finite(found, name):
    if np.isfinite(found).all():
        return found
    raise Missing(f"not all answers of {name} are finite")


def _key(saved):
    return f"{saved}_probabilities"


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
