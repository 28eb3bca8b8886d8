-- Declared losses by record id, so that one that is sent again under another epoch is declared once.
create table loss (id blob primary key) strict, without rowid;
