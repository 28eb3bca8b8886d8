-- Metrics that several experiments may name, and what a running one's plan was at its start.
create table metric (
  id blob primary key, project_id blob not null references project, key text not null, name text not null,
  definition text not null, created_at integer not null, updated_at integer not null, unique (project_id, key)
) strict;
alter table experiment add column analysis_fingerprint text;
