// Vault and, as its minimal form leaves them out, two of its plugins; the name it is called by says which to be.
package main

import (
	"log"
	"os"
	"path/filepath"

	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/command"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/database/dbplugin/v5"
	"github.com/hashicorp/vault/sdk/plugin"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "postgresql-database-plugin":
		dbplugin.ServeMultiplex(postgresql.New)
	case "vault-plugin-auth-kubernetes":
		if err := serveKubernetes(); err != nil {
			log.Fatal(err)
		}
	default:
		os.Exit(command.Run(os.Args[1:]))
	}
}

func serveKubernetes() error {
	client := &api.PluginAPIClientMeta{}
	if err := client.FlagSet().Parse(os.Args[1:]); err != nil {
		return err
	}
	return plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: kubernetes.Factory,
		TLSProviderFunc:    api.VaultPluginTLSProvider(client.GetTLSConfig()),
	})
}
