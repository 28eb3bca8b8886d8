-- Fingerprint of what decides about content on the participant's host; empty: its agent judges none beforehand.
alter table participant add column policy blob not null default x'';

-- What hosts say of content before it is assigned; `reason` as JSON, null: they would take it. Counts as long as
-- agent and policy are the participant's.
create table preflight (
  participant_id blob not null references participant, path text not null, digest blob not null,
  agent_uid blob not null, policy blob not null, reason text, judged_at integer not null,
  primary key (participant_id, path, digest)
) strict, without rowid;
create index preflight_of_content on preflight (digest);

-- Who was kept out of a run at its start, because the host refused a content of some variant.
create table kept_out (
  experiment_id blob not null references experiment on delete cascade, run integer not null,
  participant_id blob not null references participant, reasons text not null, at integer not null,
  primary key (experiment_id, run, participant_id)
) strict, without rowid;
