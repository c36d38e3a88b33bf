"""Reading from a `.tflite` file what it stores and computes in which dtype."""

import pathlib


def quantization_of(path):
    """How an exported file is quantised, read from the tensors it stores.

    Returns:
        `"int8"` where activations are int8, `"dynamic"` where only constants are, `"float16"`
        where constants are float16, else `"float32"` (a SavedModel folder always).
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return "float32"
    schema = _schema()
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    constants, activations = set(), set()
    for graph in _graphs(model):
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            stored = model.Buffers(tensor.Buffer()).DataLength() > 0
            (constants if stored else activations).add(tensor.Type())
    if schema.TensorType.INT8 in activations:
        return "int8"
    if schema.TensorType.INT8 in constants:
        return "dynamic"
    return "float16" if schema.TensorType.FLOAT16 in constants else "float32"


def float_operations(path):
    """Names of the operations that read or write float32, but for the casts from and to int8."""
    schema = _schema()
    model = schema.Model.GetRootAs(pathlib.Path(path).read_bytes(), 0)
    operator_names = {
        code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
    }
    found = set()
    for graph in _graphs(model):
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = model.OperatorCodes(operator.OpcodeIndex())
            # Operators beyond 127 are in the newer field alone.
            code = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            tensors = [operator.Inputs(i) for i in range(operator.InputsLength())]
            tensors += [operator.Outputs(i) for i in range(operator.OutputsLength())]
            # -1 stands for an optional input that is not given.
            types = {graph.Tensors(tensor).Type() for tensor in tensors if tensor >= 0}
            if schema.TensorType.FLOAT32 in types:
                found.add(operator_names.get(code, str(code)))
    return sorted(found - {"QUANTIZE", "DEQUANTIZE"})


def _graphs(model):
    return [model.Subgraphs(index) for index in range(model.SubgraphsLength())]


def _schema():
    """The generated reader of TF Lite's format, which LiteRT and TensorFlow both ship."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError:
        from tensorflow.lite.python import schema_py_generated
    return schema_py_generated
