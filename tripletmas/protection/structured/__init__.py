"""What each layer answers, held as a whole: quadratic forms of layers in place of weights one by one."""
