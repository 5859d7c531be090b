"""From one model to another: what becomes of a gallery that is moved, or embedded again in part, told beforehand."""
