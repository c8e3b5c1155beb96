"""Reduced precision, measured: value ranges, errors, and the modules that stay in fp32."""
