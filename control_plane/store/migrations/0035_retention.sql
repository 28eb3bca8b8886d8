-- From when on a phase counts nothing more, because its events are deleted; null: they are all there.
alter table phase add column events_gone_at integer;
-- Whether the last of them is deleted.
alter table phase add column events_cleared integer not null default 0;
-- The largest number of arrival that was deleted: numbers are not given twice.
alter table project add column last_arrival integer not null default 0;
-- What counts nowhere and what an application's own id stands for, by age.
create index event_nowhere on event (received_at) where reason is not null;
create index event_key_by_age on event_key (seen_at);
