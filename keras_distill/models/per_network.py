"""Several networks with an optimizer each, as one Keras optimizer."""

import keras

from keras_distill import _checks
from keras_distill import _keras


@keras.saving.register_keras_serializable(package="keras_distill")
class PerNetworkOptimizer(keras.optimizers.Optimizer):
    """One optimizer a network, behind the face of a single one.

    Building and applying are routed by variable, so that each network has state of its own:
    its own momenta, its own `global_clipnorm`, its own averages. `learning_rate` reads the
    first optimizer's and sets all. Being a `keras.optimizers.Optimizer`, it saves, works with
    callbacks, schedules and loss scaling, and on every backend.

    Args:
        optimizers: The optimizers, one a network, in the order of the groups.
        name: Name of the container.
    """

    _inner_ready = False

    def __init__(self, optimizers, name="per_network"):
        super().__init__(learning_rate=0.0, name=name)
        if not optimizers:
            raise ValueError(_checks.message("at least one optimizer", "optimizers", optimizers))
        self.optimizers = [keras.optimizers.get(optimizer) for optimizer in optimizers]
        if len({id(optimizer) for optimizer in self.optimizers}) != len(self.optimizers):
            raise ValueError(
                "Expected `optimizers` to be one object a network, for each holds the state of "
                f"one. Received: the same {type(self.optimizers[0]).__name__} twice. Make two."
            )
        for optimizer in self.optimizers:
            _check_unscaled(optimizer)
        self._groups = None
        self._inner_ready = True

    @classmethod
    def copies_of(cls, optimizer, count):
        """`count` fresh optimizers with the configuration of `optimizer`."""
        optimizer = keras.optimizers.get(optimizer)
        _check_unscaled(optimizer)
        config = keras.optimizers.serialize(optimizer)
        return cls([keras.optimizers.deserialize(config) for _ in range(count)])

    @classmethod
    def for_networks(cls, optimizer, networks):
        """What `compile` makes of the optimizer that it is given for several networks.

        Args:
            optimizer: One for all, of which each network gets a copy; a list with one a
                network; or such a container.
            networks: The models.
        """
        if isinstance(optimizer, (list, tuple)):
            optimizer = cls(optimizer)
        elif not isinstance(optimizer, cls):
            optimizer = cls.copies_of(optimizer, len(networks))
            for own, model in zip(optimizer.optimizers, networks):
                own.name = model.name  # Keras's callbacks log `learning_rate_NAME`
        optimizer.route([lambda model=model: model.trainable_variables for model in networks])
        return optimizer

    def route(self, groups):
        """Says which variables belong to which optimizer.

        Args:
            groups: One list of trainable variables an optimizer, or a function that returns
                it: asked when the optimizer is built, by when the network has its variables.
        """
        if len(groups) != len(self.optimizers):
            raise ValueError(
                f"Expected one optimizer a network. Received: {len(self.optimizers)} optimizers "
                f"for {len(groups)} networks."
            )
        self._groups = _Groups(groups)

    @_keras.no_automatic_dependency_tracking
    def build(self, trainable_variables):
        if self.built:
            return
        if self._groups is None:
            self.route([list(trainable_variables)])
        known = {id(v) for v in trainable_variables}
        groups = [group() if callable(group) else group for group in self._groups]
        with keras.name_scope(self.name):
            self._groups = _Groups([v for v in group if id(v) in known] for group in groups)
            for optimizer, group in zip(self.optimizers, self._groups):
                optimizer.build(group)
        self._trainable_variables = list(trainable_variables)
        self.built = True

    @property
    def variables(self):
        found = list(self._variables)
        for optimizer in self.optimizers if self._inner_ready else ():
            found.extend(optimizer.variables)
        return found

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        by_id = {id(v): g for g, v in zip(grads, trainable_variables)}
        for optimizer, group in self.applied():
            pairs = [(by_id[id(v)], v) for v in group if id(v) in by_id]
            if pairs:
                optimizer.apply([g for g, _ in pairs], [v for _, v in pairs])
        return self.iterations

    def applied(self):
        """The optimizers that an update applies, each with its variables."""
        return zip(self.optimizers, self._groups)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        mapping = [
            *zip(self._trainable_variables, trainable_variables),
            *zip(self.variables, optimizer_variables),
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.apply(list(grads))
        trained = [
            value if (value := scope.get_current_value(v)) is not None else given
            for v, given in zip(self._trainable_variables, trainable_variables)
        ]
        state = [
            value if (value := scope.get_current_value(v)) is not None else given
            for v, given in zip(self.variables, optimizer_variables)
        ]
        return trained, state

    def scale_loss(self, loss):
        return self.optimizers[0].scale_loss(loss)

    def finalize_variable_values(self, var_list):
        for optimizer, group in zip(self.optimizers, self._groups or ()):
            optimizer.finalize_variable_values(group)

    @property
    def iterations(self):
        return self.optimizers[0].iterations if self._inner_ready else self._iterations

    @property
    def learning_rate(self):
        return self.optimizers[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        for optimizer in self.optimizers if self._inner_ready else ():
            optimizer.learning_rate = value

    def get_config(self):
        return {
            "name": self.name,
            "optimizers": [keras.optimizers.serialize(o) for o in self.optimizers],
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(
            [keras.optimizers.deserialize(o, custom_objects) for o in config["optimizers"]],
            name=config.get("name", "per_network"),
        )


def _check_unscaled(optimizer):
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Expected an optimizer that leaves the scaling of the loss to the wrapper, which does "
            "it once for all networks under mixed_float16. Received: a LossScaleOptimizer. Give "
            "its inner optimizer."
        )


class _Groups:
    """Lists of variables that neither Keras nor TensorFlow tracks as the optimizer's own."""

    def __init__(self, groups):
        self.groups = [group if callable(group) else list(group) for group in groups]

    def __iter__(self):
        return iter(self.groups)
