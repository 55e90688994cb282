"""Scripts that train policies: `python -m policies.train --help`. They need extras; what they write does not."""
