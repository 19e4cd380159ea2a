"""What a machine should do next: pure, total, and where the tests are.

`observation` is what is seen, `goal` what is wanted, `table` maps both to a phase and a reason, `status` words them,
and `decision` puts actions and status together.
"""
