"""One criterion a file. Each is `name(unit, context, *, options) -> Tensor`, larger means keep; see the README."""
