-- A share of participants that stays out of every experiment that names it.
create table holdout (
  id blob primary key, project_id blob not null references project, key text not null, name text not null,
  description text not null, share real not null, seed blob not null, created_at integer not null,
  updated_at integer not null, unique (project_id, key)
) strict;
