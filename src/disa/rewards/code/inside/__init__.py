"""Scripts that run inside a sandbox, with nothing but the standard library and the files of this folder."""
