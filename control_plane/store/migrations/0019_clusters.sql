-- What a participant was drawn together with; empty where it was drawn by itself.
alter table assignment add column cluster text not null default '';
