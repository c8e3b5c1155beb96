"""The steps of a build. Each lists its files as artifacts; `export.pipeline` has the cache make or explain them."""
