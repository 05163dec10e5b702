"""How each ATen operation becomes a layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exhume.errors import InputError
from exhume.foreign.program import Constant, Handler, Output, Reader, Value

Arguments = Mapping[str, Any]


def _first(arguments: Arguments) -> Value:
    return arguments["self"] if "self" in arguments else arguments["input"]


def _output(value: Value) -> Output:
    if not isinstance(value, Output):
        raise InputError("A layer takes what does not depend on the images, which is not supported.")
    return value


def _parameters(**named: Value) -> dict[str, Constant]:
    """What is there of a layer's parameters, by name."""
    there = {name: value for name, value in named.items() if value is not None}
    if not all(isinstance(value, Constant) for value in there.values()):
        raise InputError("A layer's weights depend on the images, which is not supported.")
    return there


def _pair(value: int | Sequence[int]) -> list[int]:
    """Two numbers; one stands for both."""
    numbers = [value] if isinstance(value, int) else [int(one) for one in value]
    return numbers * 2 if len(numbers) == 1 else numbers


# ---- Layers with parameters


def _linear(reader: Reader, arguments: Arguments) -> Value:
    parameters = _parameters(weight=arguments["weight"], bias=arguments.get("bias"))
    return reader.layer("linear", [_output(_first(arguments))], {}, parameters)


def _product(reader: Reader, one: Value, other: Value, bias: Value = None) -> Value:
    """x W^T, with the transposed weight as it is in the state dict."""
    if not isinstance(other, Constant) or other.tensor.ndim != 2:
        raise InputError("A product of two values that depend on the images (attention) is not supported.")
    weight = Constant(other.name, other.tensor.T.contiguous())
    return reader.layer("linear", [_output(one)], {}, _parameters(weight=weight, bias=bias))


def _matmul(reader: Reader, arguments: Arguments) -> Value:
    return _product(reader, _first(arguments), arguments["other" if "other" in arguments else "mat2"])


def _addmm(reader: Reader, arguments: Arguments) -> Value:
    return _product(reader, arguments["mat1"], arguments["mat2"], _first(arguments))


def _conv2d(reader: Reader, arguments: Arguments) -> Value:
    if any(_pair(arguments.get("output_padding", 0))) or arguments.get("transposed"):
        raise InputError("Transposed convolutions are not supported.")
    padding = arguments.get("padding", 0)
    settings = {
        "stride": _pair(arguments.get("stride", 1)),
        "padding": padding if isinstance(padding, str) else _pair(padding),
        "dilation": _pair(arguments.get("dilation", 1)),
        "groups": arguments.get("groups", 1),
    }
    parameters = _parameters(weight=arguments["weight"], bias=arguments.get("bias"))
    if parameters["weight"].tensor.ndim != 4:
        raise InputError("Only convolutions of two dimensions are supported.")
    return reader.layer("conv2d", [_output(_first(arguments))], settings, parameters)


def _batch_norm(reader: Reader, arguments: Arguments) -> Value:
    if arguments.get("training") or arguments.get("use_input_stats") or arguments.get("running_mean") is None:
        raise InputError("BatchNorm that measures each batch anew mixes the images, which is not supported.")
    of = _output(_first(arguments))
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = _parameters(**{name: arguments.get(name) for name in names})
    settings = {"dims": 2 if len(of.shape) == 4 else 1, "eps": arguments["eps"]}
    return reader.layer("batch-norm", [of], settings, parameters)


def _layer_norm(reader: Reader, arguments: Arguments) -> Value:
    parameters = _parameters(weight=arguments.get("weight"), bias=arguments.get("bias"))
    settings = {"shape": list(arguments["normalized_shape"]), "eps": arguments.get("eps", 1e-5)}
    return reader.layer("layer-norm", [_output(_first(arguments))], settings, parameters)


# ---- Layers without


def _activation(kind: str, **settings: tuple[str, Any]) -> Handler:
    """settings: the name of each in ATen, and its default there."""

    def handler(reader: Reader, arguments: Arguments) -> Value:
        values = {name: arguments.get(theirs, default) for name, (theirs, default) in settings.items()}
        return reader.layer(kind, [_output(_first(arguments))], values)

    return handler


def _hardtanh(reader: Reader, arguments: Arguments) -> Value:
    if (arguments.get("min_val", -1), arguments.get("max_val", 1)) != (0, 6):
        raise InputError("Hardtanh is supported as ReLU6 only.")
    return reader.layer("relu6", [_output(_first(arguments))])


def _pool(kind: str, *more: str) -> Handler:
    def handler(reader: Reader, arguments: Arguments) -> Value:
        size = _pair(arguments["kernel_size"])
        settings: dict[str, Any] = {
            "kernel_size": size,
            "stride": _pair(arguments.get("stride") or size),
            "padding": _pair(arguments.get("padding", 0)),
            "ceil_mode": arguments.get("ceil_mode", False),
        }
        settings |= {name: arguments[name] for name in more if arguments.get(name) is not None}
        if "dilation" in settings:
            settings["dilation"] = _pair(settings["dilation"])
        return reader.layer(kind, [_output(_first(arguments))], settings)

    return handler


def _adaptive_pool(reader: Reader, arguments: Arguments) -> Value:
    settings = {"output_size": _pair(arguments["output_size"])}
    return reader.layer("adaptive-avg-pool2d", [_output(_first(arguments))], settings)


def _mean(reader: Reader, arguments: Arguments) -> Value:
    of = _output(_first(arguments))
    dims = arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    dims = [dim % len(of.shape) for dim in dims]
    if not dims or 0 in dims:
        raise InputError("A mean over all images of a batch is not supported.")
    return reader.layer("mean", [of], {"dims": dims, "keepdim": bool(arguments.get("keepdim", False))})


def _probabilities(kind: str) -> Handler:
    def handler(reader: Reader, arguments: Arguments) -> Value:
        return reader.layer(kind, [_output(_first(arguments))], {"dim": arguments["dim"]})

    return handler


def _pad(reader: Reader, arguments: Arguments) -> Value:
    if arguments.get("value") or arguments.get("mode", "constant") != "constant":
        raise InputError("Padding with anything but zeros is not supported.")
    return reader.layer("pad", [_output(_first(arguments))], {"padding": list(arguments["pad"])})


def _concatenate(reader: Reader, arguments: Arguments) -> Value:
    parts = arguments["tensors"]
    if len(parts) == 1:
        return parts[0]
    return reader.layer("concatenate", [_output(part) for part in parts], {"dim": arguments.get("dim", 0)})


# ---- Other shapes and orders


def _reshape(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    sizes = next(arguments[name] for name in ("size", "shape") if name in arguments)
    if isinstance(of, Constant):
        return _constant(of, of.tensor.reshape(sizes))
    return _to_shape(reader, of, tuple(torch.empty(of.shape, device="meta").reshape(sizes).shape))


def _flatten(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    start, end = arguments.get("start_dim", 0), arguments.get("end_dim", -1)
    if isinstance(of, Constant):
        return _constant(of, of.tensor.flatten(start, end))
    return _to_shape(reader, of, tuple(torch.empty(of.shape, device="meta").flatten(start, end).shape))


def _unflatten(reader: Reader, arguments: Arguments) -> Value:
    of = _output(_first(arguments))
    dim = arguments["dim"] % len(of.shape)
    sizes = [*of.shape[:dim], *arguments["sizes"], *of.shape[dim + 1 :]]
    return _to_shape(reader, of, tuple(torch.empty(of.shape, device="meta").reshape(sizes).shape))


def _squeeze(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    dims = arguments.get("dim")
    tensor = of.tensor if isinstance(of, Constant) else torch.empty(of.shape, device="meta")
    squeezed = tensor.squeeze() if dims is None else tensor.squeeze(dims if isinstance(dims, int) else tuple(dims))
    return _constant(of, squeezed) if isinstance(of, Constant) else _to_shape(reader, of, tuple(squeezed.shape))


def _unsqueeze(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    if isinstance(of, Constant):
        return _constant(of, of.tensor.unsqueeze(arguments["dim"]))
    return _to_shape(reader, of, tuple(torch.empty(of.shape, device="meta").unsqueeze(arguments["dim"]).shape))


def _to_shape(reader: Reader, of: Output, shape: tuple[int, ...]) -> Value:
    if shape == of.shape:
        return of
    if shape[:1] != of.shape[:1]:
        raise InputError("A change of shape mixes the images of a batch, which is not supported.")
    if len(shape) == 2 and len(of.shape) > 2:
        return reader.rearranged("flatten", of, {})
    return reader.rearranged("reshape", of, {"shape": list(shape[1:])})


def _permute(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    dims = list(arguments["dims"])
    if isinstance(of, Constant):
        return _constant(of, of.tensor.permute(dims))
    dims = [dim % len(of.shape) for dim in dims]
    if dims[0] != 0:
        raise InputError("An order of dimensions that moves the images is not supported.")
    return of if dims == sorted(dims) else reader.rearranged("permute", of, {"dims": dims})


def _transpose(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    count = of.tensor.ndim if isinstance(of, Constant) else len(of.shape)
    dims = list(range(count))
    one, other = arguments.get("dim0", 0), arguments.get("dim1", 1)
    dims[one], dims[other] = dims[other], dims[one]
    if isinstance(of, Constant) and count == 2:
        return Constant(of.name, of.tensor.T)  # W^T is its weight's, by name, once it is multiplied with
    return _permute(reader, {"self": of, "dims": dims})


def _flip(reader: Reader, arguments: Arguments) -> Value:
    of = _output(_first(arguments))
    if [dim % len(of.shape) for dim in arguments["dims"]] != [1]:
        raise InputError("Images that are turned over are not supported, other than in the order of their channels.")
    return reader.rearranged("reverse-channels", of, {})


def _slice(reader: Reader, arguments: Arguments) -> Value:
    of, dim = _first(arguments), arguments.get("dim", 0)
    count = of.tensor.shape[dim] if isinstance(of, Constant) else of.shape[dim]
    start, end, step = arguments.get("start") or 0, arguments.get("end"), arguments.get("step", 1)
    chosen = slice(start, end, step)
    if isinstance(of, Constant):
        return _constant(of, of.tensor[(slice(None),) * (dim % of.tensor.ndim) + (chosen,)])
    if range(count)[chosen] != range(count):
        raise InputError("Taking a part of the values is not supported.")
    return of


def _index(reader: Reader, arguments: Arguments) -> Value:
    of, indices = _first(arguments), arguments["indices"]
    reverse = isinstance(of, Output) and len(indices) == 2 and indices[0] is None and isinstance(indices[1], Constant)
    if reverse and indices[1].tensor.tolist() == list(range(of.shape[1] - 1, -1, -1)):
        return reader.rearranged("reverse-channels", of, {})
    raise InputError("Taking some of the values by their numbers is not supported.")


# ---- Arithmetic: the sum of a residual block, or the normalisation of the images


def _arithmetic(sign: str) -> Handler:
    def handler(reader: Reader, arguments: Arguments) -> Value:
        one, other = _first(arguments), arguments["other"]
        if arguments.get("alpha", 1) != 1:
            other = _computed("*", other, arguments["alpha"])
        if isinstance(one, Output) and isinstance(other, Output):
            if sign != "+":
                raise InputError(f"The operation {sign} between two layers is not supported.")
            return reader.layer("add", [one, other])
        if isinstance(other, Output):
            return _with_constant(reader, sign, other, one, reverse=True)
        if isinstance(one, Output):
            return _with_constant(reader, sign, one, other)
        return _computed(sign, one, other)

    return handler


def _rsub(reader: Reader, arguments: Arguments) -> Value:
    return _with_constant(reader, "-", _output(_first(arguments)), arguments["other"], reverse=True)


def _with_constant(reader: Reader, sign: str, of: Output, constant: Value, *, reverse: bool = False) -> Value:
    """x + a, x - a, x a, x / a; reverse: a stands before x."""
    value = constant.tensor if isinstance(constant, Constant) else torch.tensor(float(constant))
    if reverse and sign in "-/":
        if sign == "/" or value.numel() > 1:
            raise InputError(
                "Dividing by what depends on the images, or subtracting it from a value, is not supported."
            )
        of = _with_constant(reader, "*", of, -1.0)
        sign = "+"
    if of.order is not None:
        return _normalised(reader, sign, of, value)
    last = reader.layers[-1] if reader.layers else None
    bias = sign == "+" and isinstance(constant, Constant) and value.shape == of.shape[-1:]
    if bias and last and last.kind == "linear" and of.number == len(reader.layers) - 1:
        name = f"{last.name}.bias"
        if name not in reader.weights and reader.uses[_name_of(reader, of)] == 1:
            reader.weights[name] = value.detach()
            return of
    if value.numel() == 1:
        number = float(value)
        factor = {"*": number, "/": 1 / number if number else math.inf}.get(sign, 1.0)
        shift = {"+": number, "-": -number}.get(sign, 0.0)
        return of if (factor, shift) == (1, 0) else reader.layer("affine", [of], {"factor": factor, "shift": shift})
    raise InputError(f"The operation {sign} with learned or fixed values amid the network is not supported.")


def _name_of(reader: Reader, of: Output) -> str:
    return next(name for name, value in reader.values.items() if value is of)


def _normalised(reader: Reader, sign: str, of: Output, value: Tensor) -> Output:
    """(x - c) / s before, with another constant behind it: still of this form."""
    assert of.order is not None and reader.images.order is not None
    order = of.order.flatten()
    image = torch.empty(len(order), dtype=value.dtype)
    image[order] = value.detach().expand(of.order.shape).flatten()
    zero = torch.zeros_like(image)
    subtracted = zero if of.subtracted is None else of.subtracted
    divided = zero + 1 if of.divided is None else of.divided
    if sign in "+-":
        subtracted = subtracted + divided * (image if sign == "-" else -image)
    else:
        divided = divided / image if sign == "*" else divided * image
        if not (divided.isfinite().all() and divided.all()):
            raise InputError("The network divides the images by zero, or multiplies them with it.")
    return replace(of, subtracted=subtracted, divided=None if (divided == 1).all() else divided)


def _computed(sign: str, one: Value, other: Value) -> Value:
    """A constant of constants, or a number of numbers."""
    left, right = (value.tensor if isinstance(value, Constant) else value for value in (one, other))
    result = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[sign]()
    return Constant("", result) if isinstance(result, Tensor) else result


# ---- What does nothing, and what is computed of constants alone


def _same(reader: Reader, arguments: Arguments) -> Value:
    return _first(arguments)


def _contiguous_copy(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    return of if isinstance(of, Output) else Constant(of.name, of.tensor.clone())


def _dropout(reader: Reader, arguments: Arguments) -> Value:
    if arguments.get("train"):
        reader.notes.append("A dropout that works also in evaluation mode is taken for one that does not.")
    return _first(arguments)


def _weight_norm(reader: Reader, arguments: Arguments) -> Value:
    direction, size = arguments["v"].tensor, arguments["g"].tensor
    reader.notes.append("Weight normalisation is read as the weight that it gives.")
    return Constant("", torch._weight_norm(direction, size, arguments.get("dim", 0)))


def _expand(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    if isinstance(of, Output):
        if of.order is not None or tuple(arguments["size"])[1:] != of.shape[1:]:
            raise InputError("Copying values of the images is not supported.")
        return of
    return _constant(of, of.tensor.expand(arguments["size"]))


def _size(reader: Reader, arguments: Arguments) -> Value:
    of = _first(arguments)
    shape = tuple(of.tensor.shape) if isinstance(of, Constant) else of.shape
    return shape[arguments["dim"]] if arguments.get("dim") is not None else list(shape)


def _constant(of: Constant, tensor: Tensor) -> Constant:
    return Constant("", tensor) if tensor.shape != of.tensor.shape else replace(of, tensor=tensor)


OPERATIONS: dict[str, Handler] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "conv2d": _conv2d,
    "convolution": _conv2d,
    "_convolution": _conv2d,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": _activation("relu"),
    "leaky_relu": _activation("leaky-relu", negative_slope=("negative_slope", 0.01)),
    "gelu": _activation("gelu", approximate=("approximate", "none")),
    "tanh": _activation("tanh"),
    "sigmoid": _activation("sigmoid"),
    "silu": _activation("silu"),
    "mish": _activation("mish"),
    "elu": _activation("elu", alpha=("alpha", 1.0)),
    "softplus": _activation("softplus", beta=("beta", 1.0), threshold=("threshold", 20.0)),
    "relu6": _activation("relu6"),
    "hardtanh": _hardtanh,
    "max_pool2d": _pool("max-pool2d", "dilation"),
    "avg_pool2d": _pool("avg-pool2d", "count_include_pad"),
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean,
    "softmax": _probabilities("softmax"),
    "_softmax": _probabilities("softmax"),
    "log_softmax": _probabilities("log-softmax"),
    "_log_softmax": _probabilities("log-softmax"),
    "pad": _pad,
    "constant_pad_nd": _pad,
    "cat": _concatenate,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "numpy_T": _transpose,
    "flip": _flip,
    "slice": _slice,
    "index": _index,
    "add": _arithmetic("+"),
    "sub": _arithmetic("-"),
    "mul": _arithmetic("*"),
    "div": _arithmetic("/"),
    "rsub": _rsub,
    "expand": _expand,
    "sym_size": _size,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "_weight_norm": _weight_norm,
    "alias": _same,
    "clone": _contiguous_copy,
    "contiguous": _contiguous_copy,
    "detach": _same,
    "detach_": _same,
    "lift_fresh_copy": _same,
    "to": _same,
    "_to_copy": _same,
    "_assert_tensor_metadata": _same,
}
"""How each operation becomes a layer, by its name in ATen. A name that ends in _ works in place, and is read alike."""
