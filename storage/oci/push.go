package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/docker/cli/cli/config"
	configtypes "github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sys/unix"
)

// Push sends an image to the registry that its name names. progress is told the bytes of all
// that is sent. It returns the digest by which the registry has it.
func (s *Store) Push(ctx context.Context, ref string, registry Registry, progress func(done, total int64)) (digest v1.Hash, err error) {
	i, err := s.Get(ref)
	if err != nil {
		return digest, err
	}
	digest = i.Digest
	err = s.locked(ctx, usersLock, unix.LOCK_SH, func() error {
		to, err := registry.open(ctx, ref, transport.PushScope, registry.transport())
		if err != nil {
			return err
		}
		image, err := layout.Path(s.dir).Image(i.Digest)
		if err != nil {
			return err
		}
		updates := make(chan v1.Update, 100)
		told := make(chan struct{})
		go func() {
			defer close(told)
			for u := range updates {
				progress(u.Complete, u.Total)
			}
		}()
		err = remote.Write(to.ref, image, remote.WithContext(ctx), remote.WithTransport(to.http), remote.WithProgress(updates))
		<-told // which remote.Write has closed
		return explain(err)
	})
	if err != nil {
		return digest, fmt.Errorf("%s: %w", ref, err)
	}
	return digest, nil
}

// Login checks a password with a registry, "" being docker's, and keeps it in docker's
// configuration, or with the helper that this names.
func Login(ctx context.Context, host, user, password string, registry Registry) error {
	reg, err := parseRegistry(host, registry)
	if err != nil {
		return err
	}
	t, err := transport.NewWithContext(ctx, reg, &authn.Basic{Username: user, Password: password}, registry.transport(), nil)
	if err != nil {
		return refusal(reg, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, reg.Scheme()+"://"+reg.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return refusal(reg, err)
	}
	defer answer.Body.Close()
	if err := transport.CheckError(answer, http.StatusOK); err != nil {
		return refusal(reg, err)
	}
	file, err := config.Load(os.Getenv(config.EnvOverrideConfigDir))
	if err != nil {
		return err
	}
	key := credentialsKey(reg)
	return file.GetCredentialsStore(key).Store(configtypes.AuthConfig{ServerAddress: key, Username: user, Password: password})
}

// Logout forgets the password of a registry. It reports whether there was one.
func Logout(host string, registry Registry) (bool, error) {
	reg, err := parseRegistry(host, registry)
	if err != nil {
		return false, err
	}
	file, err := config.Load(os.Getenv(config.EnvOverrideConfigDir))
	if err != nil {
		return false, err
	}
	key := credentialsKey(reg)
	known, err := file.GetAuthConfig(key)
	if err != nil || known.Username == "" && known.IdentityToken == "" {
		return false, err
	}
	return true, file.GetCredentialsStore(key).Erase(key)
}

func parseRegistry(host string, registry Registry) (name.Registry, error) {
	if host == hubName {
		host = ""
	}
	reg, err := name.NewRegistry(host, registry.options()...)
	if err != nil {
		return reg, fmt.Errorf("%q is no registry: such as registry.example or localhost:5000", host)
	}
	return reg, nil
}

// credentialsKey is what docker's configuration calls a registry.
func credentialsKey(reg name.Registry) string {
	if reg.RegistryStr() == name.DefaultRegistry {
		return authn.DefaultAuthKey
	}
	return reg.RegistryStr()
}

// refusal says that a password was refused, if that is what the error means.
func refusal(reg name.Registry, err error) error {
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("%s: wrong user name or password", reg.RegistryStr())
	}
	return fmt.Errorf("%s: %w", reg.RegistryStr(), explain(err))
}
