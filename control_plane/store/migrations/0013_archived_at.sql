-- When an experiment was put away; what was put away before this column was there has no moment.
alter table experiment add column archived_at integer;
