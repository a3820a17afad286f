"""This package holds one criterion a file: `name(unit, context, *, options)` returns scores, of which the larger stay."""
