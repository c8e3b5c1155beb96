"""What reduced precision costs, measured: ranges, errors, and the modules that stay in float32."""
