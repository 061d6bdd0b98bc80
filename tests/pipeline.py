"""The live pipeline that docs/guides/text-to-image.md calls its reader's own."""

from tiny_pipelines import tiny

pipe = tiny("sd")
