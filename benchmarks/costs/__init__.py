"""Where the device profiles' fitted figures come from: measured rows, the fit, and its errors."""
