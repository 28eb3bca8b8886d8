-- Ids are UUIDv7 in 16 bytes, moments microseconds since 1970 UTC, digests 32 bytes, JSON is text.

create table meta (key text primary key, value blob not null) strict;

create table project (
  id blob primary key, name text not null unique, last_number integer not null default 0,
  created_at integer not null
) strict;

create table api_key (
  id blob primary key, project_id blob not null references project, name text not null,
  prefix text not null, secret_hash blob not null unique, scopes text not null,
  created_at integer not null
) strict;

create table enrollment_token (
  id blob primary key, project_id blob not null references project, name text not null,
  secret_hash blob not null unique, labels text not null, max_uses integer not null,
  uses integer not null default 0, name_pattern text, participants text not null,
  expires_at integer not null, created_at integer not null,
  check (uses <= max_uses)
) strict;

-- `generation` grows in every transaction that changes a slot of one of the agent's participants.
create table agent (
  uid blob primary key, project_id blob not null references project, name text not null,
  hostname text not null, labels text not null, host_labels text not null default '{}',
  participant_patterns text not null default '[]', generation integer not null default 0,
  version text not null default '', capabilities text not null default '[]', platform text,
  session_id blob, session_epoch integer not null default 0, boot_id text,
  connected_at integer, last_seen_at integer, lease_until integer not null default 0,
  certificate_serial text not null, certificate_not_after integer not null,
  spool text, conditions text not null default '[]',
  enrolled_at integer not null, banned_at integer
) strict;
create index agent_of_project on agent (project_id, uid);

create table participant (
  id blob primary key, project_id blob not null references project, public_id text not null,
  agent_uid blob references agent, binding_generation integer not null default 1,
  labels text not null default '{}', host_labels text not null default '{}',
  targets text not null default '[]', drift_policy text, exposure text,
  created_at integer not null, updated_at integer not null, deleted_at integer
) strict;
create unique index participant_public_id on participant (project_id, public_id) where deleted_at is null;
create index participant_of_agent on participant (agent_uid) where deleted_at is null;

create table content (
  project_id blob not null references project, digest blob not null, body blob not null,
  primary key (project_id, digest)
) strict;

create table experiment (
  id blob primary key, project_id blob not null references project, number integer not null,
  key text not null, name text not null, description text not null, type text not null,
  status text not null, archived integer not null default 0, target_file text,
  selector text not null, metrics text not null, settle_seconds integer not null, alpha real not null,
  labels text not null, metadata text, run integer not null default 1, seed blob not null,
  phase_id blob, winner_variant_id blob, conclusion text, conclusion_comment text,
  snapshot text, created_by text not null, version integer not null default 1,
  created_at integer not null, updated_at integer not null, started_at integer, paused_at integer,
  stopped_at integer, completed_at integer,
  unique (project_id, number), unique (project_id, key)
) strict;

create table variant (
  id blob primary key, experiment_id blob not null references experiment on delete cascade,
  position integer not null, key text not null, name text not null, description text not null,
  is_control integer not null, weight integer not null, config text, metadata text,
  created_at integer not null, updated_at integer not null,
  unique (experiment_id, key)
) strict;

create table variant_file (
  variant_id blob not null references variant on delete cascade, path text not null,
  digest blob not null, size integer not null,
  primary key (variant_id, path)
) strict, without rowid;

create table phase (
  id blob primary key, experiment_id blob not null references experiment, run integer not null,
  number integer not null, algorithm text not null, seed blob not null, weights text not null,
  traffic_allocation integer not null, opened_at integer not null, closed_at integer,
  unique (experiment_id, run, number)
) strict;

create table assignment (
  id blob primary key, phase_id blob not null references phase,
  experiment_id blob not null references experiment, participant_id blob not null references participant,
  variant_id blob, method text not null, block text not null, stratum text not null,
  position integer not null, labels_used text not null, from_at integer not null, to_at integer,
  forced_by text, forced_at integer,
  unique (phase_id, participant_id)
) strict;
create index assignment_of_participant on assignment (participant_id, from_at);

create table claim (
  participant_id blob not null references participant, path text not null,
  experiment_id blob not null references experiment, taken_at integer not null,
  primary key (participant_id, path)
) strict, without rowid;
create index claim_of_experiment on claim (experiment_id);

-- The desired row: what the slot should hold is its deployment's files.
create table slot (
  participant_id blob not null references participant, id blob not null,
  experiment_id blob not null references experiment, revision integer not null,
  deployment_id blob not null, reported_revision integer not null default 0,
  applied_before integer not null default 0, updated_at integer not null,
  primary key (participant_id, id)
) strict, without rowid;
create index slot_of_experiment on slot (experiment_id);

create table deployment (
  id blob primary key, project_id blob not null references project,
  experiment_id blob not null references experiment, variant_id blob, phase_id blob,
  participant_id blob not null references participant, slot_id blob not null,
  revision integer not null, origin text not null, action text not null, state text not null,
  attempts integer not null default 0, reason text, overwrite_drift integer not null default 0,
  retry integer not null default 0, requested_by text not null, created_at integer not null,
  offered_at integer, applied_at integer, confirmed_at integer, updated_at integer not null,
  unique (participant_id, slot_id, revision)
) strict;
create index deployment_of_experiment on deployment (experiment_id, id);

create table deployment_file (
  deployment_id blob not null references deployment, path text not null, desired_digest blob,
  size integer not null, running_digest blob, attempted_digest blob,
  primary key (deployment_id, path)
) strict, without rowid;

create table outcome (
  id blob primary key, deployment_id blob not null references deployment,
  participant_id blob not null, slot_id blob not null, agent_uid blob not null,
  revision integer not null, attempt integer not null, step text not null, result text not null,
  files text not null, reason text, quarantined integer not null, durations text not null,
  occurred_at integer not null, received_at integer not null,
  unique (participant_id, slot_id, revision, attempt, step)
) strict;
create index outcome_of_deployment on outcome (deployment_id, id);

create table view (
  participant_id blob not null, path text not null, from_at integer not null, id blob not null,
  digest blob, state text not null, received_at integer not null,
  primary key (participant_id, path, from_at, id)
) strict, without rowid;
create unique index view_id on view (id);

-- `reason` is why an event takes part in no experiment; null where it does.
create table event (
  id blob primary key, project_id blob not null, participant_id blob, participant_name text not null,
  agent_uid blob, kind text not null, event_name text not null, subject text not null,
  path text not null, digest blob, value_micros integer, properties text not null,
  event_id text not null, source text not null, occurred_at integer not null,
  recorded_at integer not null, received_at integer not null, epoch blob, seq integer, reason text
) strict, without rowid;
create index event_of_participant on event (participant_id, occurred_at);

create table attributed_event (
  phase_id blob not null, participant_id blob not null, block integer not null default 0,
  subject text not null, occurred_at integer not null, event_id blob not null,
  variant_id blob not null, kind text not null, event_name text not null, value_micros integer,
  assigned text not null, delivered text not null,
  primary key (phase_id, participant_id, block, subject, occurred_at, event_id)
) strict, without rowid;
create index attributed_by_event on attributed_event (event_id);

-- The application's own event ids, for 30 days.
create table event_key (
  project_id blob not null, key text not null, event_id blob not null, seen_at integer not null,
  primary key (project_id, key)
) strict, without rowid;

-- Names of the conversions that were attributed to a phase.
create table phase_event_name (
  phase_id blob not null, event_name text not null, primary key (phase_id, event_name)
) strict, without rowid;

-- event_name '' carries the first exposure; a named row exists once such a conversion was seen, its
-- moments are null until one counts.
create table unit (
  phase_id blob not null, block integer not null default 0, participant_id blob not null,
  subject text not null, event_name text not null, first_assigned integer, first_delivered integer,
  primary key (phase_id, participant_id, block, subject, event_name)
) strict, without rowid;

create table tally (
  phase_id blob not null, variant_id blob not null, participant_id blob not null,
  block integer not null default 0, event_name text not null, day integer not null,
  assigned_count integer not null default 0, assigned_units integer not null default 0,
  assigned_value integer not null default 0, delivered_count integer not null default 0,
  delivered_units integer not null default 0, delivered_value integer not null default 0,
  primary key (phase_id, variant_id, participant_id, block, event_name, day)
) strict, without rowid;

-- How many attributed events stand how, per population; what is eligible and in no tally is pending.
create table standing (
  phase_id blob not null, population text not null, standing text not null, count integer not null,
  primary key (phase_id, population, standing)
) strict, without rowid;

-- What a participant did with or without an experiment.
create table activity (
  participant_id blob not null, path text not null, event_name text not null, day integer not null,
  count integer not null, value integer not null,
  primary key (participant_id, path, event_name, day)
) strict, without rowid;

create table spool_epoch (
  agent_uid blob not null, epoch blob not null, high_seq integer not null, chain blob not null,
  updated_at integer not null,
  primary key (agent_uid, epoch)
) strict, without rowid;

-- Records that were accepted on a host and are gone, and records nobody can read.
create table spool_loss (
  agent_uid blob not null, epoch blob not null, reason text not null, count integer not null,
  primary key (agent_uid, epoch, reason)
) strict, without rowid;

create table idempotency (
  project_id blob not null, operation text not null, key text not null, fingerprint blob not null,
  response text not null, created_at integer not null,
  primary key (project_id, operation, key)
) strict, without rowid;

create table audit (
  id blob primary key, project_id blob not null, actor text not null, operation text not null,
  resource_id text not null, request text not null, at integer not null
) strict, without rowid;
