"""One task, many paid workers, one budget that holds: plans, schedules and runs graphs of paid calls."""
