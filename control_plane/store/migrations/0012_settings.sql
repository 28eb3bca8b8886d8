-- What experiments of a project may touch and hold, as JSON; absent until somebody says so.
alter table project add column settings text;
alter table project add column settings_version integer not null default 0;
alter table project add column settings_updated_at integer;
alter table project add column settings_updated_by text;
