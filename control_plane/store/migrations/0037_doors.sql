-- What clients of other systems' APIs sent that means nothing for files, by door, as JSON: echoed, never looked at.
alter table experiment add column kept text not null default '{}';
alter table variant add column kept text not null default '{}';
-- The same of what is neither.
create table kept_field (
  project_id blob not null references project, door text not null, resource text not null, resource_id blob not null,
  fields text not null, created_at integer not null, updated_at integer not null, updated_by text not null,
  primary key (project_id, door, resource, resource_id)
) strict, without rowid;

-- When it last went on after a pause.
alter table experiment add column resumed_at integer;
