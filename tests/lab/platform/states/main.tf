# What OpenTofu has made, of nothing but numbers.
resource "terraform_data" "network" { input = "10.0.0.0/8" }
resource "terraform_data" "nodes" {
  count = 3
  input = "${terraform_data.network.output} node ${count.index}"
}
