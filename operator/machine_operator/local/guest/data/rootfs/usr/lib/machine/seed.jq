# Turns the seed (a slurped array: user-data, then meta-data if that is JSON) into shell functions for init.sh.
# Every value is quoted by @sh; what a call does is in seed.sh.

def texts: if type == "array" then .[] | select(. != null) | tostring
           elif type == "string" then . else empty end;
def names: if type == "string" then [splits(", *")] else [texts] end | map(select(. != "")) | join(",");
def call($name; $values): $name + " " + ($values | map(if . == null then "" else tostring end) | @sh);
def commands: if type == "array" then .[] | select(. != null)
              | if type == "array" then call("seed_run"; .) else call("seed_run"; ["sh", "-c", tostring]) end
              else empty end;
def define($name; $lines): [$name + "() {", ":"] + $lines + ["}"] | join("\n");

def sudo_rules: if type == "array" then .[] | sudo_rules
                elif type == "string" then . else empty end;
def user: .name as $name
    | call("seed_user"; [$name, .uid, .shell, (.groups | names), .gecos]),
      (.sudo | sudo_rules | call("seed_sudo"; [$name, .])),
      (.ssh_authorized_keys, .["ssh-authorized-keys"] | texts | call("seed_key"; [$name, .]));
def metadata_keys: if type == "object" then .[] | metadata_keys else texts end;

(.[0] | if type == "object" then . else {} end) as $user
| (.[1] | if type == "object" then . else {} end) as $meta
| define("seed_early"; [$user.bootcmd | commands]),
  define("seed_apply"; [
    ($meta["instance-id"] // empty | call("seed_instance"; [.])),
    ($user.hostname // $meta["local-hostname"] // $meta.hostname // empty | call("seed_hostname"; [.])),
    ($user.users | if type == "array" then .[] else empty end | select(type == "object" and .name != null) | user),
    (($user.ssh_authorized_keys | texts), ($meta["public-keys"], $meta.public_keys | metadata_keys)
      | call("seed_login_key"; [., ($user.disable_root != false)])),
    ($user.ssh_keys | if type == "object" then to_entries[] else empty end
      | call("seed_host_key"; [(.key | split("_") | .[0], .[1]), .value])),
    ($user.write_files | if type == "array" then .[] else empty end | select(.path != null)
      | call("seed_file"; [.path, .permissions, .owner, .encoding, .append, .content])) ]),
  define("seed_final"; [$user.runcmd | commands])
