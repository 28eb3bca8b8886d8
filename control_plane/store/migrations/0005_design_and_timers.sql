-- The design as JSON, with every default in it; settle_seconds stays a column because attribution joins on it.
alter table experiment add column design text not null default '{}';
update experiment set design = '{"exposureCriteria":{"settleSeconds":' || settle_seconds ||
  '},"analysis":{"alpha":' || alpha || '}}';
alter table experiment drop column alpha;

-- What is to happen by itself. A row is done in the transaction that does it, so nothing happens twice.
create table timer (
  id blob primary key, project_id blob not null references project,
  experiment_id blob not null references experiment on delete cascade,
  kind text not null, due_at integer not null, done_at integer, failure text
) strict;
create index timer_due on timer (due_at) where done_at is null;
create index timer_of_experiment on timer (experiment_id);
