-- Participants that changed after this moment have not been looked at for letting them in late.
alter table experiment add column intake_at integer not null default 0;
create index participant_changed on participant (project_id, updated_at);
