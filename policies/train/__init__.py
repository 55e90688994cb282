"""Scripts that train policies: `python -m policies.train --help`. They need the extra `rl`; what they write does not."""
