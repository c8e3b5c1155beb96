"""The steps of a build, each an artefact of the cache."""
