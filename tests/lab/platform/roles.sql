SELECT 'CREATE ROLE "lifeboat-dump"' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lifeboat-dump') \gexec
ALTER ROLE "lifeboat-dump" LOGIN BYPASSRLS PASSWORD '@DUMP@';
GRANT pg_read_all_data TO "lifeboat-dump";
-- It makes roles for Vault's clients, and may give them what it may itself.
SELECT 'CREATE ROLE vault' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'vault') \gexec
ALTER ROLE vault LOGIN CREATEROLE PASSWORD '@VAULT@';
\connect pictshare
GRANT SELECT ON ALL TABLES IN SCHEMA public TO vault WITH GRANT OPTION;
