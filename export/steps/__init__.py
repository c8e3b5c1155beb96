"""The steps of a build. Each lists its files as artefacts; `export.pipeline` has the cache make or explain them."""
