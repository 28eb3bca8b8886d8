-- Jobs that compute an experiment's days anew for one metric as it was defined then, and the days they computed.
create table recalculation (
  id blob primary key, project_id blob not null references project,
  experiment_id blob not null references experiment on delete cascade, phase_id blob not null,
  metric text not null, fingerprint text not null, first_day integer not null, last_day integer not null,
  status text not null, created_by text not null, created_at integer not null, started_at integer,
  finished_at integer, failure text
) strict;
create index recalculation_of_experiment on recalculation (experiment_id, fingerprint, created_at);
create unique index recalculation_under_way on recalculation (experiment_id, fingerprint)
  where status in ('pending', 'in_progress');

create table daily_result (
  experiment_id blob not null references experiment on delete cascade, fingerprint text not null,
  day integer not null, counts text not null, computed_at integer not null,
  primary key (experiment_id, fingerprint, day)
) strict, without rowid;
