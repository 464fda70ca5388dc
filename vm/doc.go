// Package vm is a Linux virtual machine for Go programs: a Config describes it, New makes
// it, Start boots it, and while it runs it can be looked at, changed, saved, copied and
// moved.
//
// A VM is in this process: there is no other one behind it. It needs /dev/kvm, or
// takes longer (Config.Engine). Its methods can be called from any goroutine, and return
// ErrNotRunning where it has to run and does not.
//
// What speaks to the guest's agent (Exec, the copies, Changes, Layer, Export, Sync) waits for
// it, and returns ErrNoAgent where there never will be one. What takes a context returns the
// cause of its end. Other errors than those that are named are the guest's or the host's own,
// the latter as packages os and net have them.
//
// Who knows Docker's client finds here
//
//   - run: [New], [VM.Start] and [VM.Exec]; an image is [Config].Root.Image, from the store of package storage/oci; -v is
//     Config.Shares, -p Config.Publish
//   - cp: [VM.CopyTo] and [VM.CopyFrom]; port: [VM.Publish] and [VM.Unpublish], while it runs
//   - attach and logs: [WithConsole], [VM.AttachConsole] and [VM.LastLines]
//   - pause, stop, kill, wait: the methods of these names; rm: [VM.Close]
//   - inspect and stats: [VM.Config], [VM.Stats], [VM.Health]
//   - diff, commit, export: [VM.Changes], [VM.Layer], [VM.Export]
//   - checkpoint: [VM.Snapshot] and [Restore]; [VM.Clone] and [VM.Migrate] beside that
//   - ps: package vm/registry, of the VMs that others have
package vm
