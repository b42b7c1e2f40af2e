"""The element-wise work around the products of a model, compiled into one pass over memory each."""
