"""Bundles on disk: the schema of `bundle.json`, file verification, safetensors files and merging of conditions."""
