-- The state of the GPU during a run. NULL: not monitored, or no GPU.
alter table run add column health text check (health is null or json_valid(health));
