-- In which order events came in, a number of each project's own: the moments that hosts say of them are in any order.
alter table event add column arrival integer not null default 0;
update event set arrival = n.place from (select id, row_number() over (partition by project_id order by received_at, id)
 as place from event) n where n.id = event.id;
create index event_by_arrival on event (project_id, arrival);
