terraform {
  backend "kubernetes" {
    namespace     = "terraform"
    secret_suffix = "platform"
  }
}
